"""The CLEVR world: functions, scenes, questions, programs, their execution and generation."""
