"""Networks: how they learn and how they are judged."""
