// Package landlock is layer 1 as data: which access rights a kernel knows,
// which of them a class of paths is granted, and the list of rules that a
// policy and a container amount to. It makes no system call: the runtime opens
// the paths and fills the ruleset, the launcher enforces it.
//
// # Why rules and not exceptions
//
// Landlock grants the union of all rules on the way from a file up to the root
// (landlock(7)): a rule below another can add rights, never take them away. A
// read-only or hidden path inside a writable one is therefore no rule at all;
// whoever asks for one gets a mount or a refusal (package specs).
package landlock
