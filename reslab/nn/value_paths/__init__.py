"""Value paths: what a layer's keys and values owe to those of earlier layers."""
