"""The paper's evaluation (4.1, 4.2): which videos to make, what each scores, and Table 1."""
