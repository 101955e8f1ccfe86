"""The Fewlabel module of 3D Slicer, in layers; nothing here runs at import.

client    the server over HTTP, standard library only
jobs      work off the main thread, and its results back on it
labels    which voxel value is which structure; overlaps and unknown segments
nrrd      label maps as files
drafts    unsent work on the disk
session   what the clinician does: states, commands, and what the panel shows
lead      rounds, model versions and figures of the project
review    submitted cases, approved or sent back
mrml      volumes and segmentations in the scene (needs Slicer)
panel     binds the above to the widgets (needs Qt)
"""

VERSION = "0.1.0"
