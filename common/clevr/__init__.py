"""The CLEVR world: scenes, questions, programs, their execution, and built-in data.

What CLEVR is
    functions      the functions of programs: signatures, values, tokens, answers
    scene_graph    a scene and its relations; scenes files read and written
    questions      a question; questions files found, read and written (stream: one entry at a time)
    programs       a program as a list, as a tree and in prefix order
    vocabulary     words, program tokens and answers as numbers
Programs at work
    execute        one program on one scene, the reference
    execute_batch  many programs at once (automaton reads them)
    grammar        which tokens may come next, for decoders (rules: the grammar itself)
    accuracy       answers by question type, exact match of programs
Data
    builtin        scenes, questions and features generated here
    dataset        questions in batches, with the features of their images
    arrays/        questions, features and scenes as arrays, in memory and in files
    generation/    new questions about scenes

Imports go down: functions; programs, scene_graph; execute; questions, rules; vocabulary; the rest.
"""
