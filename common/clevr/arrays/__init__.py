"""Questions, features and scenes as arrays, in memory and in files.

encode          questions as numbers
question_files  encoded questions in .h5 files and folders of .npy files
features        feature files opened; batches that read each map once
extract         features computed from images by a ResNet, and written
grid            what a perfect detector would say of a scene, as a map
scenes          scene graphs as bits, for executing many programs at once
"""
