"""The embedding model: batches, towers, dense layers, negatives, losses and the engines that compute gradients."""
