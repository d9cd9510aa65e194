// Package limits holds what a gateway bounds: how much of everything that an
// agent, a server or an operator could exhaust, for how long, and what happens
// there. It is data: it opens nothing, imports nothing of ours and decides
// nothing.
//
// The packages of the gateway take their numbers from here, so that
// egress/LIMITS.md, which a test makes of the same table, cannot be wrong.
package limits
