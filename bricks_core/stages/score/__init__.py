"""Score: clips get numbers; the filter keeps or drops by them; the held-out split is drawn."""
