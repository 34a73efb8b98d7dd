"""Tower two: noise added, learned and removed. Knows nothing of networks beyond ``Backbone``."""
