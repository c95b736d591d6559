"""Take the results of a run away: the tuned model as a product, and the chosen rows as other trainers read
them."""
