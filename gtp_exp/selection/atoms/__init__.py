"""From stored sketches to the matrix of atoms that a pursuit reads."""
