// Package control is what the parts of nemoclaw say to each other about one
// sandbox: the messages on its sockets and the files of its state directory.
// It opens those sockets and files and decides nothing: no policy is read
// here, no address is judged, no packet is touched.
//
// Three conversations take place.
//
//	nemoclaw  ──runtime.sock──▶  monitor      bring up, hand over, take down (runtime.go)
//	monitor   ──a socket pair─▶  worker       listeners, policy, records      (worker.go)
//	operator  ──control.sock──▶  monitor      HTTP: status, decisions, events (operator.go)
//
// The first two are SOCK_SEQPACKET: one packet is one JSON message, and
// descriptors travel beside it (conn.go). Anything unexpected is an error.
package control
