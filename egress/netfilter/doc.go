// Package netfilter hears from the kernel about connections that it passes on by
// itself: those that come in from outside, which no program of ours ever holds.
// It reads what the kernel says of them and changes nothing of theirs, but for
// those that it is told to have the kernel forget. It knows no sandbox, no policy
// and no log.
//
// # Flows
//
// Connection tracking tells of flows on a netlink socket (linux/netfilter/
// nfnetlink_conntrack.h): of those alone for which a rule of the firewall asked
// (hooks sets the mask of their events), so that connections of the gateway's own
// cost nothing. Of TCP it tells each change of state, of UDP the first packet, of
// both the end, with the bytes and packets of both directions.
//
// # Refusals
//
// Packets that the firewall refuses it sends to a group of nfnetlink_log, of
// which we read the addresses and ports: the first bytes of a packet from
// outside. No byte of a program in the sandbox is ever among them.
//
// # Losses
//
// What a socket has no room for, because it is not read in time, is lost. The
// kernel says that and how many messages they were (SO_MEMINFO). Ends of flows it
// tells again until there is room, so that no flow ends unheard; what is open can
// be listed anew.
package netfilter
