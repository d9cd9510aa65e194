// Package dns answers the container's DNS questions, each name with a
// synthetic address that stands for that name alone. It asks nobody: there is
// no client in it, so no question can leave the host through it; it decides no
// connection and opens no file. What a rule lets a program ask for besides
// addresses somebody else asks ([Server.Beyond]).
//
// # Why
//
// The address that a program connects to tells which name it meant, for every
// protocol, with no race between an answer and a rule, and however many names
// share a real address. Hence one name an address, never two; names that a
// rule could allow keep theirs for the sandbox's life, and the others, whose
// attempts we want to see arrive, take turns in a small pool of their own that
// a flood of questions cannot leave. IPv6 has no synthetic addresses: one
// answer less to get wrong, and clients fall back to IPv4 without a delay.
package dns
