//! Golden bytes of everything that is kept on the bucket: a change here is a change of the format.

mod catalog;
