"""Forms of operators that only a CPU uses. What each computes is said by the operator it belongs to."""
