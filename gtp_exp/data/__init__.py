"""Read rows of text, tokenise and batch them, and find test rows and near-duplicates among them."""
