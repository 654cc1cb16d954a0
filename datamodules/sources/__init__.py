"""Where data and weights come from: fetched once, verified on every use."""
