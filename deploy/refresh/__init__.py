"""Keep a model fresh: take new events, extend the dataset, train, judge, and publish, again and again."""
