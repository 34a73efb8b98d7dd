"""How good samples are: a judge trained on the data set, the distances and shares it gives, and the report of them."""
