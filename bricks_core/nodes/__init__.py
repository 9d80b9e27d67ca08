"""Several processes on several nodes as one: how they meet, whether they are fit, and with which code they end.

meeting.py   who this node is, and how it finds the others     agent.py      starts its processes, and starts them again
exit_codes.py  which of many ends is the one that counts       process.py    what each process does: preflight, training
preflight.py   what is asked of a node before it trains: checks.py, gpus.py, clocks.py, all_reduce.py; report.py
"""
