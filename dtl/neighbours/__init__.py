"""Images that are like each other: exact neighbours in the features, and what they tell.

`nearest` and `voting` compute; `search` reads the store, and spreads the work over the workers.
"""
