"""Ingest: your films become rows. Open stage.py first."""
