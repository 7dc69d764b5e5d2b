"""The normative statements of both standards, in our words, and why some have no test here.

Each line: number, who keeps it (S: the server, alone or as a receiver or sender; C: the client), what it asks.
"""

from .registry import V3, V5

_V3 = """
1.5.3-1 S texts are well-formed UTF-8 without surrogates
1.5.3-2 S texts have no U+0000
1.5.3-3 S U+FEFF is kept
2.2.2-1 S reserved flag bits have the values listed
2.2.2-2 S invalid flags end the connection
2.3.1-1 S SUBSCRIBE, UNSUBSCRIBE and PUBLISH above QoS 0 have a packet identifier other than 0
2.3.1-2 C each new packet gets an unused identifier
2.3.1-3 S an identifier is used again only after its acknowledgement
2.3.1-4 S the same holds for the server's own PUBLISH
2.3.1-5 S PUBLISH of QoS 0 has no packet identifier
2.3.1-6 S PUBACK, PUBREC, PUBREL and PUBCOMP have the identifier of the PUBLISH
2.3.1-7 S SUBACK and UNSUBACK have the identifier of what they answer
3.1.0-1 S the first packet is CONNECT
3.1.0-2 S a second CONNECT ends the connection
3.1.2-1 S another protocol name is not treated as MQTT 3.1.1
3.1.2-2 S an unsupported level is answered with 0x01 and the end
3.1.2-3 S CONNECT's reserved flag is 0
3.1.2-4 S a kept session is resumed or made, and stored
3.1.2-5 S messages of QoS 1 and 2 are stored for a session that is away
3.1.2-6 S a clean session discards the old one and leaves nothing
3.1.2-7 S retained messages do not end with a session
3.1.2-8 S the will is stored, and published when the connection ends without DISCONNECT
3.1.2-9 S with a will its topic and message are there
3.1.2-10 S the will is removed once published, or with DISCONNECT
3.1.2-11 S without a will its flags are 0 and its fields are not there
3.1.2-12 S without a will none is published
3.1.2-13 S without a will its QoS is 0
3.1.2-14 S the will's QoS is not 3
3.1.2-15 S without a will its retain flag is 0
3.1.2-16 S a will without the retain flag is not retained
3.1.2-17 S a will with the retain flag is retained
3.1.2-18 S no user name without its flag
3.1.2-19 S a user name with its flag
3.1.2-20 S no password without its flag
3.1.2-21 S a password with its flag
3.1.2-22 S no password without a user name
3.1.2-23 C the client sends something within the keep-alive
3.1.2-24 S silence for 1.5 times the keep-alive ends the connection
3.1.3-1 S the fields of CONNECT come in order
3.1.3-2 S the client id identifies the session's state
3.1.3-3 S the client id is there, and first
3.1.3-4 S the client id is UTF-8
3.1.3-5 S client ids of 1 to 23 letters and digits are allowed
3.1.3-6 S an empty client id gets a unique one
3.1.3-7 S an empty client id needs a clean session
3.1.3-8 S an empty client id without a clean session is refused with 0x02
3.1.3-9 S a client id that is refused is told 0x02
3.1.3-10 S the will's topic is UTF-8
3.1.3-11 S the user name is UTF-8
3.1.4-1 S a malformed CONNECT ends the connection without CONNACK
3.1.4-2 S the connection that has the client id is ended
3.1.4-3 S the clean session flag is obeyed
3.1.4-4 S CONNECT is acknowledged with 0
3.1.4-5 S nothing that follows a refused CONNECT is processed
3.2.0-1 S the first packet to the client is CONNACK
3.2.2-1 S session present is 0 with a clean session
3.2.2-2 S session present is 1 when there is stored state
3.2.2-3 S session present is 0 when there is none
3.2.2-4 S session present is 0 with a refusal
3.2.2-5 S a refusal ends the connection
3.2.2-6 S where no return code fits, the connection ends without CONNACK
3.3.1-1 S what is delivered again is marked DUP
3.3.1-2 S DUP is 0 with QoS 0
3.3.1-3 S DUP is not handed on
3.3.1-4 S QoS 3 ends the connection
3.3.1-5 S a retained message is stored with its QoS
3.3.1-6 S a new subscription gets the last retained message of each matching topic
3.3.1-7 S a retained message of QoS 0 replaces the one before
3.3.1-8 S RETAIN is 1 when a message is sent for a new subscription
3.3.1-9 S RETAIN is 0 for an established subscription
3.3.1-10 S an empty retained message is processed, and removes the one there was
3.3.1-11 S an empty message is not stored
3.3.1-12 S a message without RETAIN is not stored and replaces nothing
3.3.2-1 S the topic is there, first, and UTF-8
3.3.2-2 S the topic has no wildcards
3.3.2-3 S the topic sent matches the subscription's filter
3.3.4-1 S each QoS has its answer
3.3.5-1 S overlapping subscriptions deliver at the highest QoS
3.3.5-2 S a publish that is not authorized is acknowledged or ends the connection
3.5.4-1 S PUBREC is answered with PUBREL
3.6.1-1 S PUBREL has the flags 0010
3.6.4-1 S PUBREL is answered with PUBCOMP
3.8.1-1 S SUBSCRIBE has the flags 0010
3.8.3-1 S filters of SUBSCRIBE are UTF-8
3.8.3-2 S a server without wildcards refuses them
3.8.3-3 S SUBSCRIBE has a filter
3.8.3-4 S reserved bits or QoS 3 in SUBSCRIBE end the connection
3.8.4-1 S SUBSCRIBE is answered with SUBACK
3.8.4-2 S SUBACK has the identifier of the SUBSCRIBE
3.8.4-3 S the same filter replaces its subscription; retained messages are sent again, nothing is lost
3.8.4-4 S several filters are handled as several SUBSCRIBEs with one answer
3.8.4-5 S SUBACK has a code for each filter
3.8.4-6 S a message is sent at the lower of its QoS and the granted one
3.9.3-1 S the codes are in the filters' order
3.9.3-2 S SUBACK has no other codes than 0, 1, 2 and 0x80
3.10.1-1 S UNSUBSCRIBE has the flags 0010
3.10.3-1 S filters of UNSUBSCRIBE are UTF-8
3.10.3-2 S UNSUBSCRIBE has a filter
3.10.4-1 S filters are compared character by character
3.10.4-2 S no new messages after UNSUBSCRIBE
3.10.4-3 S deliveries that began are completed
3.10.4-4 S UNSUBSCRIBE is answered with UNSUBACK of the same identifier
3.10.4-5 S also when nothing was deleted
3.10.4-6 S several filters get one UNSUBACK
3.12.4-1 S PINGREQ is answered with PINGRESP
3.14.1-1 S DISCONNECT's reserved bits are 0
3.14.4-1 S after DISCONNECT the connection is closed
3.14.4-2 S nothing after DISCONNECT is processed
3.14.4-3 S DISCONNECT discards the will
4.1.0-1 S state is kept for as long as the session
4.1.0-2 S a session lasts at least as long as its connection
4.3.1-1 S QoS 0 is sent with DUP 0
4.3.2-1 S QoS 1 is sent with an unused identifier and DUP 0
4.3.2-2 S QoS 1 is acknowledged, and its identifier free then
4.3.3-1 S QoS 2 is sent in its steps, each until it is acknowledged
4.3.3-2 S QoS 2 is received in its steps, and delivered once
4.4.0-1 S PUBLISH and PUBREL that are not acknowledged are sent again upon resumption
4.5.0-1 S a message is added to the sessions of all matching subscriptions
4.5.0-2 C the client acknowledges what it gets
4.6.0-1 S PUBLISH is sent again in the original order
4.6.0-2 C PUBACK comes in order
4.6.0-3 C PUBREC comes in order
4.6.0-4 C PUBREL comes in order
4.6.0-5 S topics are ordered by default
4.6.0-6 S messages of one client, topic and QoS are delivered in order
4.7.1-1 S topic names have no wildcards
4.7.1-2 S # is a whole level, and the last
4.7.1-3 S + is a whole level
4.7.2-1 S wildcards at the first level do not match topics that start with $
4.7.3-1 S topics and filters are not empty
4.7.3-2 S topics and filters have no U+0000
4.7.3-3 S topics and filters have at most 65,535 bytes
4.7.3-4 S nothing is normalized in matching
4.8.0-1 S a protocol violation ends the connection
4.8.0-2 S a transient error ends the connection
6.0.0-1 S WebSocket frames are binary
6.0.0-2 S WebSocket frames need not be packets
6.0.0-3 S the client offers the subprotocol mqtt
6.0.0-4 S the server selects the subprotocol mqtt
7.0.0-1 S who is client and server conforms as both
7.0.0-2 S no extension is needed
7.1.1-1 S an ordered, lossless transport is served
"""

_V5 = """
1.5.4-1 S texts are well-formed UTF-8 without surrogates
1.5.4-2 S texts have no U+0000
1.5.4-3 S U+FEFF is kept
1.5.5-1 S variable-length numbers are as short as can be
1.5.7-1 S both texts of a pair are UTF-8
2.1.3-1 S reserved flag bits have the values listed
2.2.1-2 S PUBLISH of QoS 0 has no packet identifier
2.2.1-3 S SUBSCRIBE, UNSUBSCRIBE and PUBLISH above QoS 0 have an identifier other than 0
2.2.1-4 S the server's PUBLISH has an unused identifier other than 0
2.2.1-5 S PUBACK, PUBREC, PUBREL and PUBCOMP have the identifier of the PUBLISH
2.2.1-6 S SUBACK and UNSUBACK have the identifier of what they answer
2.2.2-1 S no properties are a length of 0
3.1.0-1 S the first packet is CONNECT
3.1.0-2 S a second CONNECT is a protocol error
3.1.2-1 S another protocol name ends the connection
3.1.2-2 S another version ends the connection, after 0x84 at most
3.1.2-3 S CONNECT's reserved flag is 0
3.1.2-4 S a clean start discards the session
3.1.2-5 S without it the session is resumed
3.1.2-6 S or made when there is none
3.1.2-7 S the will is stored with the session
3.1.2-8 S the will is published when the connection ends, unless DISCONNECT 0x00 took it back or the client is back in time
3.1.2-9 S with a will its properties, topic and payload are there
3.1.2-10 S the will is removed once published, or with DISCONNECT 0x00
3.1.2-11 S without a will its QoS is 0
3.1.2-12 S the will's QoS is not 3
3.1.2-13 S without a will its retain flag is 0
3.1.2-14 S a will without the retain flag is not retained
3.1.2-15 S a will with the retain flag is retained
3.1.2-16 S no user name without its flag
3.1.2-17 S a user name with its flag
3.1.2-18 S no password without its flag
3.1.2-19 S a password with its flag
3.1.2-20 C the client pings within the keep-alive
3.1.2-21 S the server's keep-alive replaces the client's
3.1.2-22 S silence for 1.5 times the keep-alive ends the connection
3.1.2-23 S the session is stored while its expiry lasts
3.1.2-24 S no packet is larger than the client's maximum
3.1.2-25 S a message that is too large counts as sent
3.1.2-26 S no alias above the client's maximum is sent
3.1.2-27 S none at all where the maximum is absent or 0
3.1.2-28 S no response information unless it was asked for
3.1.2-29 S no reason strings or user properties in acknowledgements where the client wants none
3.1.2-30 S with an authentication method, nothing but AUTH and DISCONNECT before CONNACK
3.1.3-1 S the fields of CONNECT come in order
3.1.3-2 S the client id identifies the session's state
3.1.3-3 S the client id is there, and first
3.1.3-4 S the client id is UTF-8
3.1.3-5 S client ids of 1 to 23 letters and digits are allowed
3.1.3-6 S an empty client id gets a unique one
3.1.3-7 S which CONNACK tells
3.1.3-8 S a client id that is refused ends the connection, after 0x85 at most
3.1.3-9 S no will when the client is back within the delay
3.1.3-10 S the will's user properties keep their order
3.1.3-11 S the will's topic is UTF-8
3.1.3-12 S the user name is UTF-8
3.1.4-1 S a malformed CONNECT ends the connection
3.1.4-2 S so does one that is not allowed
3.1.4-3 S the connection that has the client id is ended with 0x8E
3.1.4-4 S clean start is obeyed
3.1.4-5 S CONNECT is acknowledged with 0x00
3.1.4-6 S nothing that follows a refused CONNECT is processed
3.2.0-1 S CONNACK comes before anything else
3.2.0-2 S and once
3.2.2-1 S the reserved bits of CONNACK are 0
3.2.2-2 S session present is 0 with a clean start
3.2.2-3 S session present tells whether there was a session
3.2.2-4 C the client closes when it has no session
3.2.2-5 C the client discards its session when the server has none
3.2.2-6 S session present is 0 with a refusal
3.2.2-7 S a refusal ends the connection
3.2.2-8 S CONNACK has a reason code of its own
3.2.2-9 S a server without QoS 1 or 2 says so
3.2.2-10 S and takes subscriptions of any QoS
3.2.2-11 C the client does not publish above the maximum QoS
3.2.2-12 S a will above it is refused
3.2.2-13 S a retained will is refused where retaining is not supported
3.2.2-14 C the client does not retain where that is not supported
3.2.2-15 S packets above the server's maximum are refused
3.2.2-16 S an assigned client id is new
3.2.2-17 S aliases above the server's maximum are refused
3.2.2-18 S all, where it allows none
3.2.2-19 S no reason string in CONNACK above the client's packet size
3.2.2-20 S no user property either
3.2.2-21 S the client uses the server's keep-alive
3.2.2-22 S without one the server uses the client's
3.3.1-1 S what is delivered again is marked DUP
3.3.1-2 S DUP is 0 with QoS 0
3.3.1-3 S DUP is not handed on
3.3.1-4 S QoS 3 is malformed
3.3.1-5 S a retained message replaces the one before
3.3.1-6 S an empty one removes it
3.3.1-7 S an empty one is not stored
3.3.1-8 S a message without RETAIN changes nothing
3.3.1-9 S retain handling 0 sends the retained messages
3.3.1-10 S retain handling 1 sends them to new subscriptions only
3.3.1-11 S retain handling 2 does not send them
3.3.1-12 S RETAIN is 0 without retain-as-published
3.3.1-13 S RETAIN is as published with it
3.3.2-1 S the topic is there, first, and UTF-8
3.3.2-2 S the topic has no wildcards
3.3.2-3 S the topic sent matches the subscription's filter
3.3.2-4 S the payload format is handed on
3.3.2-5 S what has expired is not delivered
3.3.2-6 S what is delivered tells the time left
3.3.2-7 S aliases end with the connection
3.3.2-8 S alias 0 is refused
3.3.2-9 S aliases above the maximum are refused
3.3.2-10 C the client takes all aliases up to its maximum
3.3.2-11 S the server sends none above the client's maximum
3.3.2-12 S the server takes all up to its own
3.3.2-13 S the response topic is UTF-8
3.3.2-14 S the response topic has no wildcards
3.3.2-15 S the response topic is handed on
3.3.2-16 S correlation data are handed on
3.3.2-17 S all user properties are handed on
3.3.2-18 S in order
3.3.2-19 S the content type is UTF-8
3.3.2-20 S the content type is handed on
3.3.4-1 S each QoS has its answer
3.3.4-2 S overlapping subscriptions deliver at the highest QoS
3.3.4-3 S with the subscription identifiers
3.3.4-4 S all of them in a single copy
3.3.4-5 S or each in its own
3.3.4-6 S a client's PUBLISH has no subscription identifier
3.3.4-7 S the server's receive maximum is not exceeded
3.3.4-8 S other packets are not held back for it
3.3.4-9 S nor is the client's receive maximum exceeded
3.3.4-10 S and other packets are not held back for it
3.4.2-1 S PUBACK has a reason code of its own
3.4.2-2 S no reason string above the receiver's packet size
3.4.2-3 S no user property either
3.5.2-1 S PUBREC has a reason code of its own
3.5.2-2 S no reason string above the receiver's packet size
3.5.2-3 S no user property either
3.5.4-1 S PUBREC is answered with PUBREL
3.6.1-1 S PUBREL has the flags 0010
3.6.2-1 S PUBREL has a reason code of its own
3.6.2-2 S no reason string above the receiver's packet size
3.6.2-3 S no user property either
3.6.4-1 S PUBREL is answered with PUBCOMP
3.7.2-1 S PUBCOMP has a reason code of its own
3.7.2-2 S no reason string above the receiver's packet size
3.7.2-3 S no user property either
3.8.1-1 S SUBSCRIBE has the flags 0010
3.8.3-1 S filters of SUBSCRIBE are UTF-8
3.8.3-2 S SUBSCRIBE has a filter
3.8.3-3 S with no-local, nothing comes back to its publisher
3.8.3-4 S no-local on a shared subscription is a protocol error
3.8.3-5 S reserved bits of the options are 0
3.8.4-1 S SUBSCRIBE is answered with SUBACK
3.8.4-2 S SUBACK has the identifier of the SUBSCRIBE
3.8.4-3 S the same filter replaces its subscription
3.8.4-4 S retained messages are sent again, nothing is lost
3.8.4-5 S several filters are handled as several SUBSCRIBEs with one answer
3.8.4-6 S SUBACK has a code for each filter
3.8.4-7 S the code is the QoS granted or a failure
3.8.4-8 S a message is sent at the lower of its QoS and the granted one
3.9.2-1 S no reason string in SUBACK above the client's packet size
3.9.2-2 S no user property either
3.9.3-1 S the codes are in the filters' order
3.9.3-2 S SUBACK has codes of its own
3.10.1-1 S UNSUBSCRIBE has the flags 0010
3.10.3-1 S filters of UNSUBSCRIBE are UTF-8
3.10.3-2 S UNSUBSCRIBE has a filter
3.10.4-1 S filters are compared character by character
3.10.4-2 S no new messages after UNSUBSCRIBE
3.10.4-3 S deliveries that began are completed
3.10.4-4 S UNSUBSCRIBE is answered with UNSUBACK
3.10.4-5 S of the same identifier, also when nothing was deleted
3.10.4-6 S several filters get one UNSUBACK
3.11.2-1 S no reason string in UNSUBACK above the client's packet size
3.11.2-2 S no user property either
3.11.3-1 S the codes are in the filters' order
3.11.3-2 S UNSUBACK has codes of its own
3.12.4-1 S PINGREQ is answered with PINGRESP
3.14.0-1 S no DISCONNECT before CONNACK
3.14.1-1 S DISCONNECT's reserved bits are 0
3.14.2-1 S DISCONNECT has a reason code of its own
3.14.2-2 S the server's DISCONNECT has no session expiry
3.14.2-3 S no reason string in DISCONNECT above the receiver's packet size
3.14.2-4 S no user property either
3.14.4-1 S nothing follows DISCONNECT
3.14.4-2 S the connection is closed after it
3.14.4-3 S DISCONNECT 0x00 discards the will
3.15.1-1 S AUTH has the flags 0000
3.15.2-1 S AUTH has a reason code of its own
3.15.2-2 S no reason string in AUTH above the receiver's packet size
3.15.2-3 S no user property either
4.1.0-1 S the session is kept while its connection is open
4.1.0-2 S it is discarded when its expiry is over
4.2-1 S an ordered, lossless transport is served
4.3.1-1 S QoS 0 is sent with DUP 0
4.3.2-1 S QoS 1 is sent with an unused identifier
4.3.2-2 S and DUP 0
4.3.2-3 S it is unacknowledged until PUBACK
4.3.2-4 S what is received is answered with PUBACK
4.3.2-5 S and its identifier free then
4.3.3-1 S QoS 2 is sent with an unused identifier
4.3.3-2 S and DUP 0
4.3.3-3 S it is unacknowledged until PUBREC
4.3.3-4 S PUBREC is answered with PUBREL of the same identifier
4.3.3-5 S which is unacknowledged until PUBCOMP
4.3.3-6 S PUBLISH is not sent again after PUBREL
4.3.3-7 S what was sent does not expire
4.3.3-8 S what is received is answered with PUBREC
4.3.3-9 S an identifier that PUBREC refused is free
4.3.3-10 S until PUBREL, the same identifier is answered and not delivered again
4.3.3-11 S PUBREL is answered with PUBCOMP
4.3.3-12 S then the identifier is free
4.3.3-13 S expiry does not stop the exchange
4.4.0-1 S PUBLISH and PUBREL that are not acknowledged are sent again upon resumption, and only then
4.4.0-2 S what was refused is not sent again
4.5.0-1 S a message is added to the sessions of all matching subscriptions
4.5.0-2 C the client acknowledges what it gets
4.6.0-1 C PUBLISH is sent again in the original order
4.6.0-2 C PUBACK comes in order
4.6.0-3 C PUBREC comes in order
4.6.0-4 C PUBREL comes in order
4.6.0-5 S messages of one client, topic and QoS are delivered in order
4.6.0-6 S topics are ordered by default
4.7.0-1 S topic names have no wildcards
4.7.1-1 S # is a whole level, and the last
4.7.1-2 S + is a whole level
4.7.2-1 S wildcards at the first level do not match topics that start with $
4.7.3-1 S topics and filters are not empty
4.7.3-2 S topics and filters have no U+0000
4.7.3-3 S topics and filters have at most 65,535 bytes
4.7.3-4 S nothing is normalized in matching
4.8.2-1 S a shared subscription has a name
4.8.2-2 S without /, + and #, and a filter after it
4.8.2-3 S each member's QoS is respected
4.8.2-4 S QoS 2 that was begun is completed with its member
4.8.2-5 S and given to nobody else when that session ends
4.8.2-6 S what a member refuses is given to nobody else
4.9.0-1 S the send quota starts at no more than the receive maximum
4.9.0-2 S at 0 no PUBLISH above QoS 0 is sent
4.9.0-3 S all other packets are
4.12.0-1 S an authentication method that is not supported ends the connection, after 0x8C at most
4.12.0-2 S the server's AUTH says 0x18
4.12.0-3 C so does the client's
4.12.0-4 S authentication may be refused at any point
4.12.0-5 S the method stays the same
4.12.0-6 S without a method the server sends no AUTH
4.12.0-7 S nor does the client
4.12.1-1 S nor does it authenticate again
4.12.1-2 S a failed re-authentication ends the connection
4.13.1-1 S what is malformed or against the protocol ends the connection
4.13.2-1 S CONNACK and DISCONNECT of 0x80 and above end the connection
6.0.0-1 S WebSocket frames are binary
6.0.0-2 S WebSocket frames need not be packets
6.0.0-3 S the client offers the subprotocol mqtt
6.0.0-4 S the server selects the subprotocol mqtt
"""

# What the server under test has no occasion for.
_ALL = "the server supports all of it"
_NO_METHODS = "the server has no authentication methods and sends no AUTH"
NO_OCCASION = {
    (V3, "3.8.3-2"): _ALL,
    (V3, "4.8.0-2"): "cannot be brought about from outside; a full log is tested in `crates/gateway/tests/acknowledgement.rs`",
    (V3, "7.0.0-1"): "the server opens no MQTT connections to other servers here",
    (V5, "3.2.2-9"): _ALL,
    (V5, "3.2.2-10"): _ALL,
    (V5, "3.2.2-12"): _ALL,
    (V5, "3.2.2-13"): _ALL,
    (V5, "3.15.2-2"): _NO_METHODS,
    (V5, "3.15.2-3"): _NO_METHODS,
    (V5, "4.12.0-2"): _NO_METHODS,
    (V5, "4.12.0-5"): _NO_METHODS,
    (V5, "4.12.1-2"): _NO_METHODS,
}


def _read(text):
    lines = [line.split(" ", 2) for line in text.split("\n") if line]
    return {number: (who, what) for number, who, what in lines}


STATEMENTS = {V3: _read(_V3), V5: _read(_V5)}
