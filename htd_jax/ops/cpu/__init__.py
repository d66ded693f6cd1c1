"""Forms of operators that only a CPU uses; the operator that chooses one documents what it computes."""
