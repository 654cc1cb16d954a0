"""What is measured of scores: ranking, yes/no probabilities, ratings, and how ties count."""
