"""What is measured of a model: accuracies, calibration, features, batches, gradients, Hessian."""
