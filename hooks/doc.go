// Package hooks is what happens around a container's birth and death: it
// fences the container's network namespace, moves the engine's cable out of it
// and attaches and detaches the gateway. It may not decide what is allowed, and
// it never touches a namespace that it was not handed.
//
// Two namespaces belong to a sandbox. Programs run in the inner one, which
// holds loopback and stand-ins; the engine's interfaces live in the uplink, and
// with them every connection that leaves.
//
//	inner                                   uplink
//	  lo   198.18.0.1  the listeners          lo
//	       198.18.0.2  the sandbox itself
//	  eth0 the container's address ═══veth═══ nm-1   no address
//	       (stand-in, replies only)           eth0 ──▶ the engine's network
//
// The order of a life is
//
//	Fence, Listen          create, before the engine plugs anything in
//	NewUplink, PinUplink   create
//	Plug                   the end of create, and again start; later links too
//	Seal                   start: steer everything to the listeners and verify
//	Prune                  when the engine removed a stand-in
//	Unplug, Unpin          when the last init has exited
//	Return                 instead, if the namespace outlives the sandbox
//
// Join is how one more container comes into a namespace that is sealed already.
//
// # Why
//
// The seal is the missing cable and not the rules: whoever could flush the
// rules would be out if the cable were still there, and only cuts himself off
// without it. So the rules of the inner namespace make refusals polite and
// steer, while what Seal verifies is that there is nothing to leave by.
//
// A stand-in carries the engine's name for its interface, because programs look
// for it and because the engine removes it by that name. It is reached by a
// firewall mark and not by rewriting the destination, so that programs which
// listen on the container's own address work as well as those on 0.0.0.0.
//
// No program is executed and nothing is needed in the image: everything here is
// netlink (rtnetlink(7), nf_tables) and /proc/sys/net.
package hooks
