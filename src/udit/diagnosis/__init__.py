"""What is wrong or slow on this machine, and what is odd in a run: ``udit.doctor``.

A check is a function that yields findings: ``machine`` and ``software`` look at where udit runs, ``run`` at a run.
"""
