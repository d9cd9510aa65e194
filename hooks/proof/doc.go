// Package proof tells whether a sandbox is as confined now as create was asked
// to confine it: it looks at every process that lives there, at the namespace,
// at the gateway and at the files, from the host's side and at the time of
// asking. It changes nothing and repairs nothing, and believes nothing that is
// merely remembered: what create stored is what was asked, never what is.
//
// A layer holds, is weaker than asked, or cannot be observed. The weakest
// thread of the weakest process decides: one that joined by exec, or that
// somebody put there from outside, counts like the first.
//
// # Why
//
// What changes for a moment is looked at again before it counts: a process that
// is just joining is confined only once its launcher is done, a policy file is
// in force only once it has been read.
package proof
