"""The contract: what a user writes, what each stage leaves. Imports neither torch nor any service's client."""
