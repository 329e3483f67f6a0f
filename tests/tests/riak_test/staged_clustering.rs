//! riak_test `verify_staged_clustering`: nothing happens before a commit, a commit needs a plan, and
//! what was planned is what happens, several changes being one.
