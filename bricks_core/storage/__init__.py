"""Where artifacts live, and the sources they are made from: store.py is the contract."""
