"""The report of a run: its facts, drawn and written down as one page."""
