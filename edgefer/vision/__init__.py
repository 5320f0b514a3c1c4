"""From pictures to detections, embeddings and emotions, through int8 TFLite models."""
