// Package escape is what has been tried to get out of sandboxes, as data: each
// attempt with its source, what is tried, the answer that it must get, and what
// proves that the attempt is one. It runs nothing: the tests of package
// integration try it under nemoclaw and under runc, those of engines under a
// real Docker.
package escape
