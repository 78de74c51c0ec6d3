"""Networks: encoders and heads, their training, evaluation, export and reports."""
