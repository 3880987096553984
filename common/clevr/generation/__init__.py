"""New questions about scenes: templates filled in, one answer each.

generate   all 90 templates, balanced answers, a bounded search
tiny       short questions of a few families, sampled fast
catalogue  the 90 templates; template: what one is and how it becomes a program
phrases    their sentences and synonyms; realise: a sentence with its values, and in other words
options    what a scene offers to a question
"""
