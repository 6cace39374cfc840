"""What is made from a run: its report, pictures, and weights for other libraries. Its public parts:

report         write: prints and draws what a finished run has learnt
curves         draw: the curves of one run or several, from their logs
maps           over_files: alignment maps of a run over images
figures        the pictures themselves, of arrays
export         export: the encoder as a file for torchvision, timm, detectron2, mmseg or safetensors
"""
