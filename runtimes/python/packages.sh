# What `docker import` gets where no registry can be reached.
suite=bookworm
variant=minbase
packages=python3,python3-pip,ca-certificates
