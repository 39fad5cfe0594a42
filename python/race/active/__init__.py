"""The choice of the structures to label next: `race select` chooses from a pool,
`race active` closes the loop with an oracle.
"""
