// Package attempt is what the demo asks its agent to try, and what the agent
// answers. It judges nothing: which layer answered is for the demo to find out.
package attempt
