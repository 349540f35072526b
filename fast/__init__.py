"""The same models on the same parameters, run faster: functions over the modules of model_pytorch and t5_pytorch."""
