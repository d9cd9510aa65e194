// Client is a program in a sandbox that speaks what Go programs speak: HTTP/2,
// gRPC and WebSocket. It attacks nothing, and uses nothing of nemoclaw's own.
//
//	client h2 URL       a GET over HTTP/2: its protocol and its body
//	client grpc URL     three messages of one bidirectional stream, and its status
//	client ws URL       three messages, and their echo
//
// It trusts the certificates of SSL_CERT_FILE.
package main
