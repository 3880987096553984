"""A run's folder: what it holds, how it is locked, resumed and compared.

`checkpoint.py` saves and resumes (`sealed.py`: the file, `options.py`: what must stay as it was,
`random_states.py`), `lock.py` keeps other runs out, `log.py` and `result.py` write what was
measured, `versus.py` trains several settings side by side, `interrupt.py` is Ctrl-C.
"""
