// Package specs is what a policy does to an OCI container: what is refused,
// the list of edits to its spec, and the Landlock rules that its program gets.
// It is pure: whatever it must know of the host or the image comes in as a
// value (Host, Image), it reads no file and makes no system call.
//
// The edits are applied in memory; a bundle's config.json is never written.
// Each is an Edit that says in words what it does, so that the list can be
// read in a golden file, in the audit log and in the output of check.
package specs
