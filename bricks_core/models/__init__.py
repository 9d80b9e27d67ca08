"""Networks: the video transformer, and the encoders around it. They know nothing of stages or storage."""
