"""The torch reference ops: readable, in float64, and the specification every fast backend is tested against."""
