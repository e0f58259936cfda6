//! Sessions, presence, quotas and results on Redis, standalone or as a cluster. Redis is shared, fast and
//! reconstructible: nothing that a user was promised lives only here. The only crate that names fred.
