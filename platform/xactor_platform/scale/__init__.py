"""What a training would need on machines that are not here: memory, time and data, by formula and simulation."""
