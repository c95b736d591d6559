"""The page: charts, example rows and the HTML around them."""
