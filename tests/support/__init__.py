"""What tests share: fakes of the outside, real etcd processes, waiting."""
